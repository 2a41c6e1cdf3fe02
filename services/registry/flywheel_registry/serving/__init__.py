"""What a model's gateways serve: routing, history, desired state and gateway reports."""
