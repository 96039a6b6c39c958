"""What the settings ask for, built: storage, use cases and servicers, protection. Nothing here runs yet."""

from mastery_grpc.assembly.kafka import kafka_access, topic_terms
from mastery_grpc.assembly.protection import (
    breaker_of,
    certificates_of,
    rate_limiter_of,
    server_terms,
    signing_keys_of,
)
from mastery_grpc.assembly.services import (
    ANALYTICS_SERVICE,
    BATCH_SERVICE,
    COMPLIANCE_SERVICE,
    MASTERY_SERVICE,
    PREDICTION_SERVICE,
    RECOMMENDATION_SERVICE,
    Services,
    audit_log_of,
    batch_servicer_of,
    forecaster_of,
    services_of,
)
from mastery_grpc.assembly.storage import COUNTING_INTERVAL, Storage, opened_storage, utc_now

__all__ = [
    "ANALYTICS_SERVICE",
    "BATCH_SERVICE",
    "COMPLIANCE_SERVICE",
    "COUNTING_INTERVAL",
    "MASTERY_SERVICE",
    "PREDICTION_SERVICE",
    "RECOMMENDATION_SERVICE",
    "Services",
    "Storage",
    "audit_log_of",
    "batch_servicer_of",
    "breaker_of",
    "certificates_of",
    "forecaster_of",
    "kafka_access",
    "opened_storage",
    "rate_limiter_of",
    "server_terms",
    "services_of",
    "signing_keys_of",
    "topic_terms",
    "utc_now",
]
