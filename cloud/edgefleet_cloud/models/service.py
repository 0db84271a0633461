"""What can be done with models. No HTTP here, and no commit: both are the caller's."""

from __future__ import annotations

from collections.abc import Mapping

from sqlmodel import Session

from edgefleet_cloud.errors import ConflictError, NotFoundError
from edgefleet_cloud.models import repository
from edgefleet_cloud.models.tables import ModelRow
from edgefleet_cloud.ports import Clock, EventSink
from edgefleet_shared.identifiers import check_name
from edgefleet_shared.steps import Step
from edgefleet_shared.times import format_time


class ModelService:
    """Creates and finds models.

    Args:
        events: Where what happened is remembered.
        clock: Tells the time.
    """

    def __init__(self, events: EventSink, clock: Clock) -> None:
        self._events = events
        self._clock = clock

    def create(
        self, session: Session, name: str, description: str, labels: Mapping[str, str], actor: str
    ) -> ModelRow:
        """Create a model.

        Raises:
            InvalidInputError: The name cannot be used.
            ConflictError: There is one of that name.
        """
        check_name(name, "model")
        if repository.get_model(session, name):
            raise ConflictError(f"There is a model {name!r} already.", code="already_exists")
        row = ModelRow(
            name=name,
            description=description,
            labels=dict(labels),
            created=format_time(self._clock()),
        )
        session.add(row)
        self._events.record(
            session,
            type="model.created",
            step=Step.ACCEPT,
            subject=f"models/{name}",
            message=f"Model {name} was created.",
            actor=actor,
        )
        return row

    def get(self, session: Session, name: str) -> ModelRow:
        """Return a model.

        Raises:
            NotFoundError: There is none of that name.
        """
        row = repository.get_model(session, name)
        if row is None:
            raise NotFoundError(
                f"There is no model {name[:80]!r}.", hint="GET /v1/models lists them."
            )
        return row
