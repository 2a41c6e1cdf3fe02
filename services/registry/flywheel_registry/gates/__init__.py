"""Gates: what a model version must show before it may enter the next stage."""
