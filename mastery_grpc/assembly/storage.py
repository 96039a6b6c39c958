"""Redis, and what every process does with it."""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from mastery_grpc.application.apply_events import ApplyEvents
from mastery_grpc.application.cohorts.manage import ManageCohorts
from mastery_grpc.application.cohorts.members import CohortMembers
from mastery_grpc.application.cohorts.memberships import CohortMemberships
from mastery_grpc.application.course_pulse import CountCourses
from mastery_grpc.settings import PREFIX, Settings, SettingsError
from mastery_grpc.storage.batch_feed import RedisBatchFeed
from mastery_grpc.storage.cache import CachedMasteryReader
from mastery_grpc.storage.connection import Replicas, connect
from mastery_grpc.storage.course_pulse_cache import CachedCoursePulses
from mastery_grpc.storage.feed import RedisMasteryFeed
from mastery_grpc.storage.redis_advice import RedisAdviceStore
from mastery_grpc.storage.redis_audit_log import RedisAuditStore
from mastery_grpc.storage.redis_batch_work import RedisBatchWork
from mastery_grpc.storage.redis_batches import RedisBatchStore
from mastery_grpc.storage.redis_cohorts import RedisCohortStore
from mastery_grpc.storage.redis_course_pulse import RedisCoursePulses
from mastery_grpc.storage.redis_figures import RedisFigures
from mastery_grpc.storage.redis_held_batches import RedisHeldBatches
from mastery_grpc.storage.redis_issued_forecasts import RedisIssuedForecasts
from mastery_grpc.storage.redis_outlooks import RedisOutlookStore
from mastery_grpc.storage.redis_quotas import RedisQuotas
from mastery_grpc.storage.redis_repository import RedisStudentRepository
from mastery_grpc.storage.redis_student_records import RedisStudentRecords
from mastery_grpc.storage.redis_upkeep import RedisUpkeepClaims

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from mastery_grpc.application.circuit_breaker import CircuitBreaker
    from mastery_grpc.application.compliance.held_data import HeldData
    from mastery_grpc.storage.command_observer import CommandObserver

COUNTING_INTERVAL = 5.0
"""Seconds between two writes of what courses did; a crash loses so much of it."""
COURSE_PULSE_LIFETIME = 60.0
COURSE_PULSE_CAPACITY = 1000


def utc_now() -> datetime:
    """Returns the current time; the only clock of the service."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Storage:
    """Redis, and what both processes do with it."""

    repository: RedisStudentRepository
    apply: ApplyEvents
    feed: RedisMasteryFeed
    reader: CachedMasteryReader
    count_courses: CountCourses
    course_pulses: CachedCoursePulses
    outlooks: RedisOutlookStore
    advice: RedisAdviceStore
    issued: RedisIssuedForecasts
    cohorts: RedisCohortStore
    manage_cohorts: ManageCohorts
    figures: RedisFigures
    audit: RedisAuditStore
    quotas: RedisQuotas
    batches: RedisBatchStore
    batch_work: RedisBatchWork
    batch_feed: RedisBatchFeed
    held_batches: RedisHeldBatches
    records: RedisStudentRecords
    claims: RedisUpkeepClaims

    @property
    def elsewhere(self) -> tuple[HeldData, ...]:
        """Whoever holds data about students outside of their own keys."""
        return (self.issued, CohortMemberships(self.cohorts, self.manage_cohorts), self.held_batches)


@asynccontextmanager
async def opened_storage(
    settings: Settings, breaker: CircuitBreaker | None, observer: CommandObserver | None = None
) -> AsyncIterator[Storage]:
    """Yields the storage; nothing is asked of Redis yet. Raises SettingsError for an address that is none."""
    try:
        client = connect(
            settings.redis_url,
            timeout=settings.redis_timeout,
            max_connections=settings.redis_max_connections,
            observer=observer,
        )
    except ValueError as error:
        raise SettingsError(f"{PREFIX}REDIS_URL: {error}") from None
    retention = settings.retention()
    try:
        # Half the time: whoever waits for replicas must not be cut off by the timeout of his connection.
        replicas = Replicas(settings.redis_min_replicas, settings.redis_timeout / 2)
        repository = RedisStudentRepository(client, retention=retention, replicas=replicas, breaker=breaker)
        course_pulses = RedisCoursePulses(client, lifetime=retention.course_pulse, breaker=breaker)
        count_courses = CountCourses(course_pulses, interval=COUNTING_INTERVAL)
        advice = RedisAdviceStore(client, retention=retention, replicas=replicas, breaker=breaker)
        apply = ApplyEvents(
            repository,
            rules=settings.scoring_rules(),
            log_retention=retention.event_log,
            clock=utc_now,
            advice=settings.advice_config(),
            feedback=advice,
            count_courses=count_courses,
        )
        reader = CachedMasteryReader(
            repository,
            capacity=settings.cache_capacity,
            lifetime=settings.cache_lifetime,
            timer=time.monotonic,
        )
        cached_pulses = CachedCoursePulses(
            course_pulses,
            capacity=COURSE_PULSE_CAPACITY,
            lifetime=COURSE_PULSE_LIFETIME,
            timer=time.monotonic,
        )
        feed = RedisMasteryFeed(client, cache=reader)
        outlooks = RedisOutlookStore(client, lifetime=retention.prediction, breaker=breaker)
        issued = RedisIssuedForecasts(client, retention=retention, clock=utc_now, breaker=breaker)
        cohorts = RedisCohortStore(client, retention=retention, replicas=replicas, breaker=breaker)
        figures = RedisFigures(client, breaker=breaker)
        # No breaker: both go on behind the calls, and their failures are not to be counted with theirs.
        audit = RedisAuditStore(client, retention=retention.audit, replicas=replicas)
        quotas = RedisQuotas(client, period=settings.call_limits().period)
        batches = RedisBatchStore(client, lifetime=retention.batches, replicas=replicas, breaker=breaker)
        records = RedisStudentRecords(client, retention=retention, replicas=replicas, breaker=breaker)
        manage_cohorts = ManageCohorts(cohorts, CohortMembers(repository), records, clock=utc_now)
        yield Storage(
            repository,
            apply,
            feed,
            reader,
            count_courses,
            cached_pulses,
            outlooks,
            advice,
            issued,
            cohorts,
            manage_cohorts,
            figures,
            audit,
            quotas,
            batches,
            RedisBatchWork(client, lifetime=retention.batches, replicas=replicas),
            RedisBatchFeed(client),
            RedisHeldBatches(client, clock=utc_now, breaker=breaker),
            records,
            RedisUpkeepClaims(client),
        )
    finally:
        await client.aclose()
