"""Built-in training code, on the same interface as the code of users."""
