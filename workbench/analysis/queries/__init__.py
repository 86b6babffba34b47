"""What single queries are worth: AP drop, gain, quality."""
