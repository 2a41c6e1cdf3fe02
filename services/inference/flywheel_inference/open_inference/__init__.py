"""The Open Inference Protocol (KServe v2): addresses, tensors, and models that are called with raw tensors."""
