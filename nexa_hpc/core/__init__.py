"""What is true on disk and what follows from it: pure and light."""
