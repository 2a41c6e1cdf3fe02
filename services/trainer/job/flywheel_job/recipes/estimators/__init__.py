"""scikit-learn, XGBoost and LightGBM on tabular data, exported to ONNX by their own converters."""
