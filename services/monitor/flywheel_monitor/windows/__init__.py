"""Windows of event time: spans, watermarks, and the counts that a window is made of."""
