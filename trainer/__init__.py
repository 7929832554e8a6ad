"""How features are used: batches, encoders, fusion, the loop, and the `mmtrain` command."""
