"""The gRPC door: the server, one thin servicer per service, and the pipeline around every call."""
