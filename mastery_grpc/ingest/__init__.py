"""The Kafka door: records in, state applied, results and dead letters out."""
