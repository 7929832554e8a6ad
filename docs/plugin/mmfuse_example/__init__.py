"""A worked plug-in of mmfuse: one thing of each kind, a file each."""
