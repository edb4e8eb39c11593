"""Try a cluster: every collective on every group, what it costs, and which ranks are slow or broken."""
