"""What is measured on a machine with a GPU, and how it gets there."""
