"""The Open Inference Protocol (KServe v2): addresses, tensors, calls with raw tensors."""
