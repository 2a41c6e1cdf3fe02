"""The process that Ray starts for each attempt: runs the attempt's command and stores its output."""
