"""How features are made: corpus in, stages, commit, and the `mmfeat` command."""
