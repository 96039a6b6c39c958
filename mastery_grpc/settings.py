"""Settings from `MASTERY_…` variables; the only reader of the environment."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict
from pydantic_settings import SettingsError as SourceError

from mastery_grpc.application.batches.submit import BatchLimits
from mastery_grpc.application.compliance.retention import DEAD_LETTERS_KEPT, REQUESTS_KEPT, Retention
from mastery_grpc.application.rate_limits import CallLimits
from mastery_grpc.domain.errors import InvalidInput
from mastery_grpc.domain.forecasting.forecast import ForecastTerms
from mastery_grpc.domain.recommendations import AdviceConfig
from mastery_grpc.domain.scoring import Method, ScoringRules, Weights

PREFIX = "MASTERY_"
SHORTEST_SECRETS = {"HS256": 32, "HS384": 48, "HS512": 64}
"""Bytes: RFC 7518 asks for as many as the hash has."""
SHORTEST_AUDIT_KEY = 32
"""Bytes, as many as the hash has."""
REDIS_SCHEMES = (
    "redis",
    "rediss",
    "unix",
    "redis+cluster",
    "rediss+cluster",
    "redis+sentinel",
    "rediss+sentinel",
)


class SettingsError(Exception):
    """A setting that is wrong or missing; the message is one line that says which and why."""


def _known_scheme(url: str) -> str:
    if url.partition("://")[0] not in REDIS_SCHEMES:
        raise ValueError(f"must begin with one of {', '.join(REDIS_SCHEMES)}, followed by ://")
    return url


_WEIGHTS = ["weight_completion", "weight_quiz", "weight_quality", "weight_consistency"]
Seconds = Annotated[float, Field(gt=0)]
Port = Annotated[int, Field(ge=0, le=65535)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Days = Annotated[int, Field(ge=1, le=3650)]


class Settings(BaseSettings):
    """Everything that an operator may set. The variable of `redis_url` is `MASTERY_REDIS_URL`, and so on."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore", frozen=True, validate_by_name=True)

    redis_url: Annotated[str, AfterValidator(_known_scheme)] = "redis://127.0.0.1:6379/0"
    """`redis://`, `rediss://`, `unix://`, `redis+cluster://`, or `redis+sentinel://host:port,host:port/service`."""
    redis_timeout: Seconds = 2.0
    """For each connect and each reply, in seconds."""
    redis_max_connections: Annotated[int, Field(ge=4)] = 100
    """Of one process to one server; calls beyond that wait for one."""
    redis_min_replicas: Annotated[int, Field(ge=0)] = 0
    """So many replicas must have an update before it counts. 0: a failover may lose the last ones."""

    kafka_bootstrap_servers: str = ""
    """Empty: the server applies events without publishing results; the worker does not start."""
    kafka_requests_topic: str = "mastery.requests"
    kafka_results_topic: str = "mastery.results"
    kafka_dlq_topic: str = "mastery.dlq"
    kafka_partitions: Annotated[int, Field(ge=1, le=10_000)] = 6
    """Of the requests and of the results: so many workers can share the work."""
    kafka_dlq_partitions: Annotated[int, Field(ge=1, le=10_000)] = 3
    kafka_replication_factor: Annotated[int, Field(ge=0, le=32_767)] = 0
    """How many brokers hold each partition of the topics that we create; 0: as the broker has it."""
    kafka_properties: dict[str, Any] = {}
    """Further librdkafka properties as JSON, such as {"security.protocol": "SASL_SSL"}."""
    kafka_transactions: bool = True
    """Off only for brokers without transactions: results are then published at least once."""
    kafka_timeout: Seconds = 5.0
    """How long an event that came by gRPC may take into Kafka, in seconds."""
    ingest_group: str = "mastery-ingest"
    ingest_batch_size: Annotated[int, Field(ge=1, le=10_000)] = 500
    ingest_dead_letters_in_a_row: Annotated[int, Field(ge=1)] = 1000
    """More than so many in a row, and the worker stops consuming: the fault is not with single records."""
    ingest_dead_letter_share: Fraction = 0.5
    """The same for more than this share of the last `ingest_dead_letter_window` records."""
    ingest_dead_letter_window: Annotated[int, Field(ge=1)] = 5000
    ingest_health_port: Port = 50052

    grpc_host: str = "0.0.0.0"  # noqa: S104 - a service listens; who may reach it is the network's business
    grpc_port: Port = 50051
    grpc_workers: Annotated[int, Field(ge=1, le=64)] = 1
    """Processes that share the port."""
    grpc_reflection: bool = True
    grpc_default_timeout: Seconds = 10.0
    """For unary calls of clients that set no deadline, in seconds."""
    grpc_slow_reader_timeout: Seconds = 30.0
    """A stream whose reader takes no message for so long is ended, in seconds."""
    grpc_drain_timeout: Annotated[float, Field(ge=0, le=30)] = 25.0
    """How long calls under way may take when the server stops, in seconds."""
    grpc_max_receive_message_size: Annotated[int, Field(ge=1024)] = 4 * 1024 * 1024
    grpc_max_send_message_size: Annotated[int, Field(ge=1024)] = 16 * 1024 * 1024
    grpc_max_concurrent_streams: Annotated[int, Field(ge=1)] = 1000
    grpc_keepalive_time: Seconds = 60.0
    grpc_keepalive_timeout: Seconds = 20.0
    grpc_max_connection_age: Seconds = 300.0
    grpc_max_connection_age_grace: Seconds = 60.0

    rate_limit_people: Annotated[int, Field(ge=0)] = 100
    """Calls of each class (read, write, ingest) that a student, teacher or administrator may make in a minute,
    on all servers together; 0: without limit."""
    rate_limit_services: Annotated[int, Field(ge=0)] = 600_000
    """The same for a service."""
    max_streams_people: Annotated[int, Field(ge=0)] = 10
    """Streams that a student, teacher or administrator may hold open in each server process; 0: without limit."""
    max_streams_services: Annotated[int, Field(ge=0)] = 1000
    """The same for a service."""

    max_batches_people: Annotated[int, Field(ge=0)] = 10
    """Batches that a student, teacher or administrator may have in flight; 0: without limit."""
    max_batches_services: Annotated[int, Field(ge=0)] = 100
    """The same for a service."""
    batch_chunks_at_once: Annotated[int, Field(ge=0, le=16)] = 1
    """Chunks of batches that each server process works on at a time; 0: it leaves them to others."""

    metrics_port: Port = 9464
    """Where server and worker show their metrics to Prometheus. Several server processes take the ports from this
    one on."""

    # The SDK of OpenTelemetry reads its variables itself. These few tell whether there is anybody to send to.
    otel_exporter_otlp_endpoint: Annotated[str, Field(validation_alias="OTEL_EXPORTER_OTLP_ENDPOINT")] = ""
    otel_exporter_otlp_traces_endpoint: Annotated[
        str, Field(validation_alias="OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    ] = ""
    otel_exporter_otlp_metrics_endpoint: Annotated[
        str, Field(validation_alias="OTEL_EXPORTER_OTLP_METRICS_ENDPOINT")
    ] = ""
    otel_exporter_otlp_protocol: Annotated[str, Field(validation_alias="OTEL_EXPORTER_OTLP_PROTOCOL")] = "grpc"
    otel_traces_exporter: Annotated[str, Field(validation_alias="OTEL_TRACES_EXPORTER")] = ""
    otel_metrics_exporter: Annotated[str, Field(validation_alias="OTEL_METRICS_EXPORTER")] = ""
    otel_traces_sampler: Annotated[str, Field(validation_alias="OTEL_TRACES_SAMPLER")] = ""
    otel_sdk_disabled: Annotated[bool, Field(validation_alias="OTEL_SDK_DISABLED")] = False

    breaker_failures: Annotated[int, Field(ge=1)] = 5
    """So many failures of Redis, or of Kafka, in a row, and the server answers UNAVAILABLE at once."""
    breaker_open_seconds: Seconds = 2.0
    """After so long one call tries again."""

    cache_capacity: Annotated[int, Field(ge=1)] = 1000
    cache_lifetime: Seconds = 30.0

    jwt_secret: SecretStr | None = None
    """Signs and verifies tokens. Not needed where the issuer's keys are given."""
    jwt_algorithm: Literal["HS256", "HS384", "HS512"] = "HS256"
    """Of the secret only: the issuer's keys say their own."""
    jwt_jwks: str = ""
    """The issuer's keys as a JSON Web Key Set: a file, or an `https://` URL."""
    jwt_jwks_timeout: Annotated[float, Field(gt=0, le=30)] = 5.0
    jwt_jwks_refresh_interval: Seconds = 600.0
    """After so long the keys are asked for again."""
    jwt_jwks_shortest_interval: Seconds = 30.0
    """Tokens with unknown keys make us ask sooner, but not sooner than this."""
    jwt_issuer: str | None = None
    jwt_audience: str | None = None

    tls_cert: str = ""
    """A PEM file: the server's certificate and those between it and its authority. Together with its key."""
    tls_key: str = ""
    tls_client_ca: str = ""
    """A PEM file of the authorities whose certificates every client must have then."""
    grpc_health_port: Port = 50053
    """Where TLS is on, health alone is served here without it, for probes that know none."""

    forecaster: Literal["pooled", "persistence", "linear_regression"] = "pooled"
    forecast_model: str = ""
    """The file of a model for the pooled forecaster; empty for the one that comes with the package."""
    forecast_interval_level: Annotated[float, Field(gt=0, lt=1)] = 0.8
    """The probability that a forecast's interval is to hold the score."""
    intervention_threshold: Fraction = 0.5
    """Below this score someone should step in."""

    recommendation_component_threshold: Fraction = 0.70
    """A component below it gets advice."""
    recommendation_max_results: Annotated[int, Field(ge=1, le=10)] = 10
    recommendation_dismissal_days: Annotated[int, Field(ge=0, le=90)] = 14
    """So long dismissed advice is not repeated."""
    recommendation_daily_effort_minutes: Annotated[int, Field(ge=5, le=720)] = 30
    """The time that a student is taken to have on a day."""

    audit_key: SecretStr | None = None
    """Authenticates the audit log; at least 32 bytes. With another key the log from before is not authentic."""
    audit_retention_days: Days = 365
    """How long the audit log keeps its entries."""
    retention_snapshot_days: Days = 90
    """How long each kind of data is kept after it was written."""
    retention_event_log_days: Days = 90
    retention_processed_days: Days = 7
    """No more than the event log's, and twice as long as Kafka keeps the requests: they may all come again."""
    retention_activity_days: Days = 30
    retention_prediction_hours: Annotated[int, Field(ge=1, le=24)] = 1
    retention_issued_forecast_days: Annotated[int, Field(ge=2, le=365)] = 14
    """From the day that they are for: outages of the verification may last so long."""
    retention_path_hours: Annotated[int, Field(ge=1, le=30 * 24)] = 24
    retention_feedback_days: Days = 90
    """No less than dismissed advice is to be kept away."""
    retention_batch_days: Days = 7
    """From when a batch was submitted."""
    retention_erasure_mark_days: Days = 37
    """A week more than the dead letters are kept: none of them may outlive the mark."""

    weight_completion: Fraction = 0.40
    weight_quiz: Fraction = 0.30
    weight_quality: Fraction = 0.20
    weight_consistency: Fraction = 0.10
    completion_method: Method = Method.LATEST
    quiz_method: Method = Method.DECAYING_AVERAGE
    quality_method: Method = Method.DECAYING_AVERAGE
    decay_weight: float = 0.65
    n_mastery_count: int = 5
    n_mastery_score: Fraction = 0.75
    consistency_window_days: int = 14

    def scoring_rules(self) -> ScoringRules:
        """Returns the formula as set. Raises SettingsError for one that is none."""
        try:
            return ScoringRules(
                weights=Weights(
                    completion=self.weight_completion,
                    quiz=self.weight_quiz,
                    quality=self.weight_quality,
                    consistency=self.weight_consistency,
                ),
                completion=self.completion_method,
                quiz=self.quiz_method,
                quality=self.quality_method,
                decay_weight=self.decay_weight,
                n_mastery_count=self.n_mastery_count,
                n_mastery_score=self.n_mastery_score,
                consistency_window_days=self.consistency_window_days,
            )
        except InvalidInput as error:
            first = error.violations[0]
            names = _WEIGHTS if first.field == "weights" else [first.field.replace("weights.", "weight_")]
            variables = ", ".join(PREFIX + name.upper() for name in names)
            raise SettingsError(f"{variables}: {first.reason}") from None

    def advice_config(self) -> AdviceConfig:
        """Returns what recommendations and learning paths follow."""
        return AdviceConfig(
            weights=self.scoring_rules().weights,
            component_threshold=self.recommendation_component_threshold,
            max_results=self.recommendation_max_results,
            dismissal=timedelta(days=self.recommendation_dismissal_days),
            daily_effort=timedelta(minutes=self.recommendation_daily_effort_minutes),
        )

    def retention(self) -> Retention:
        """Returns how long data is kept. Raises SettingsError for lifetimes that would break a guarantee."""
        feedback = max(self.recommendation_dismissal_days, 1)
        least = {
            "retention_processed_days": (2 * REQUESTS_KEPT.days, "twice as long as Kafka keeps the requests"),
            "retention_feedback_days": (feedback, f"{PREFIX}RECOMMENDATION_DISMISSAL_DAYS"),
            "retention_erasure_mark_days": (DEAD_LETTERS_KEPT.days + 7, "a week longer than the dead letters"),
        }
        for name, (days, reason) in least.items():
            if getattr(self, name) < days:
                raise SettingsError(f"{PREFIX}{name.upper()}: must be at least {days}: {reason}")
        if self.retention_processed_days > self.retention_event_log_days:
            raise SettingsError(
                f"{PREFIX}RETENTION_PROCESSED_DAYS: must be at most {PREFIX}RETENTION_EVENT_LOG_DAYS, "
                f"which is {self.retention_event_log_days}"
            )
        return Retention(
            snapshots=timedelta(days=self.retention_snapshot_days),
            event_log=timedelta(days=self.retention_event_log_days),
            processed=timedelta(days=self.retention_processed_days),
            activity=timedelta(days=self.retention_activity_days),
            prediction=timedelta(hours=self.retention_prediction_hours),
            issued_forecasts=timedelta(days=self.retention_issued_forecast_days),
            path=timedelta(hours=self.retention_path_hours),
            feedback=timedelta(days=self.retention_feedback_days),
            batches=timedelta(days=self.retention_batch_days),
            audit=timedelta(days=self.audit_retention_days),
            erasure_mark=timedelta(days=self.retention_erasure_mark_days),
        )

    def sends_metrics(self) -> bool:
        """Returns whether metrics go out by OTLP. Raises SettingsError for a protocol that is not spoken."""
        return self._sends(self.otel_metrics_exporter, self.otel_exporter_otlp_metrics_endpoint)

    def sends_traces(self) -> bool:
        """Returns whether traces are kept, and go out by OTLP. Raises SettingsError as `sends_metrics` does."""
        return self._sends(self.otel_traces_exporter, self.otel_exporter_otlp_traces_endpoint)

    def _sends(self, exporter: str, endpoint: str) -> bool:
        wanted = exporter == "otlp" or bool(not exporter and (endpoint or self.otel_exporter_otlp_endpoint))
        if wanted and self.otel_exporter_otlp_protocol != "grpc":
            raise SettingsError("OTEL_EXPORTER_OTLP_PROTOCOL: only grpc is spoken")
        return wanted and not self.otel_sdk_disabled

    def call_limits(self) -> CallLimits:
        """Returns how many calls callers may make, and how many streams they may hold."""
        return CallLimits(
            people=self.rate_limit_people,
            services=self.rate_limit_services,
            streams_people=self.max_streams_people,
            streams_services=self.max_streams_services,
        )

    def batch_limits(self) -> BatchLimits:
        """Returns how many batches callers may have in flight."""
        return BatchLimits(people=self.max_batches_people, services=self.max_batches_services)

    def forecast_terms(self) -> ForecastTerms:
        """Returns what every forecast is asked to state."""
        return ForecastTerms(
            interval_level=self.forecast_interval_level, intervention_threshold=self.intervention_threshold
        )

    def secret(self) -> str | None:
        """Returns the secret that tokens are verified with, None where the issuer's keys are enough.

        Raises SettingsError if there is neither, or the secret can be none.
        """
        secret = self.jwt_secret.get_secret_value() if self.jwt_secret is not None else ""
        if not secret and self.jwt_jwks:
            return None
        shortest = SHORTEST_SECRETS[self.jwt_algorithm]
        if not secret:
            raise SettingsError(
                f"{PREFIX}JWT_SECRET: is not set, nor is {PREFIX}JWT_JWKS; at least {shortest} bytes are needed"
            )
        if len(secret.encode()) < shortest:
            raise SettingsError(
                f"{PREFIX}JWT_SECRET: must be at least {shortest} bytes long for {self.jwt_algorithm}"
            )
        if "-----BEGIN" in secret:
            raise SettingsError(f"{PREFIX}JWT_SECRET: must not be a key or a certificate in PEM")
        return secret

    def audit_secret(self) -> bytes:
        """Returns what the keys of the audit log are derived from: its own secret, else that of the tokens.

        Raises SettingsError if there is neither.
        """
        if self.audit_key is not None and (own := self.audit_key.get_secret_value()):
            if len(own.encode()) < SHORTEST_AUDIT_KEY:
                raise SettingsError(f"{PREFIX}AUDIT_KEY: must be at least {SHORTEST_AUDIT_KEY} bytes long")
            return own.encode()
        if (secret := self.secret()) is None:
            raise SettingsError(
                f"{PREFIX}AUDIT_KEY: is not set, nor is {PREFIX}JWT_SECRET; "
                f"at least {SHORTEST_AUDIT_KEY} bytes are needed"
            )
        return secret.encode()

    def signing_secret(self) -> str:
        """Returns the secret that tokens are signed with. Raises SettingsError if there is none."""
        if (secret := self.secret()) is None:
            raise SettingsError(f"{PREFIX}JWT_SECRET: is not set, and {PREFIX}JWT_JWKS signs no tokens")
        return secret


def read_settings(**overrides: Any) -> Settings:
    """Returns the settings of this process. Raises SettingsError with one clear line."""
    try:
        settings = Settings(**overrides)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = PREFIX + "_".join(str(part) for part in first["loc"]).upper()
        raise SettingsError(f"{name}: {first['msg'].removeprefix('Value error, ')}") from None
    except SourceError as error:  # a value that should have been JSON; the message names the field only
        name = PREFIX + str(error).partition('"')[2].partition('"')[0].upper()
        raise SettingsError(f"{name}: is not JSON") from None
    settings.scoring_rules()
    settings.retention()
    return settings
