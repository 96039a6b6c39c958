"""The real servers that the tests stand on: Redis-protocol servers and a Kafka broker, started as needed."""
