"""What is computed: frames, arrays and tensors in, the same out."""
