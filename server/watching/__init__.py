"""What the server tells Prometheus: cheap observations from any thread, read at the scrape."""
