"""Exactly once, proven: the product's own workers on Apache Kafka and Redis while everything around them fails."""
