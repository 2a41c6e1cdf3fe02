"""Changes sent by HTTP to addresses that a project has set: signed, durable, in order, retried."""
