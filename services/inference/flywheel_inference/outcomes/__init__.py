"""Labels and business outcomes of predictions."""
