"""Starting, supervising and stopping a process."""
