"""/v1/rollouts and /v1/device-deployments."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Response
from sqlmodel import Session

from edgefleet_cloud.auth.caller import Scope
from edgefleet_cloud.auth.guards import Scoped, allow
from edgefleet_cloud.paging import PageOf, Paging
from edgefleet_cloud.rollouts import repository
from edgefleet_cloud.rollouts.planning import Plan
from edgefleet_cloud.rollouts.schemas import (
    DeviceDeployment,
    NewRollout,
    PlanConflict,
    PlannedWave,
    Reason,
    Rollout,
    RolloutPlan,
)
from edgefleet_cloud.rollouts.service import Rollouts
from edgefleet_cloud.rollouts.tables import RolloutRow
from edgefleet_cloud.web import Actor, Db, part, set_etag

router = APIRouter(tags=["rollouts"])
Service = Annotated[Rollouts, Depends(part(Rollouts))]
NO_REASON = Reason()


@router.get("/v1/rollouts", dependencies=[allow("rollouts.read")])
def list_rollouts(service: Service, db: Db, scope: Scoped, query: Paging) -> PageOf[Rollout]:
    """List rollouts; filter on id, model, version, manifest, state, created, started, finished."""
    with db.read() as session:
        rows, token = service.page(session, query, scope)
        items = [_shape(service, session, row, scope) for row in rows]
        return PageOf(items=items, next_page_token=token)


@router.post(
    "/v1/rollouts",
    status_code=201,
    responses={200: {"model": RolloutPlan}},
    response_model=None,
    dependencies=[allow("rollouts.write")],
)
def create_rollout(
    service: Service, db: Db, scope: Scoped, actor: Actor, body: NewRollout, response: Response
) -> Rollout | RolloutPlan:
    """Make a rollout and start it; with `dry_run`, answer 200 with what it would do."""
    if body.dry_run:
        with db.read() as session:
            response.status_code = 200
            return _plan(body, service.plan(session, body, scope))
    with db.write() as session:
        row = service.create(session, body, actor, scope)
        set_etag(response, row.revision)
        return _shape(service, session, row, scope)


@router.get("/v1/rollouts/{rollout_id}", dependencies=[allow("rollouts.read")])
def get_rollout(
    service: Service, db: Db, scope: Scoped, rollout_id: str, response: Response
) -> Rollout:
    """Answer one rollout with its waves."""
    with db.read() as session:
        row = service.get(session, rollout_id, scope)
        set_etag(response, row.revision)
        return _shape(service, session, row, scope)


@router.post("/v1/rollouts/{rollout_id}/start", dependencies=[allow("rollouts.write")])
def start_rollout(
    service: Service, db: Db, scope: Scoped, actor: Actor, rollout_id: str, body: Reason = NO_REASON
) -> Rollout:
    """Start a draft."""
    with db.write() as session:
        row = service.held(session, rollout_id, scope)
        service.start(session, row, body.reason, actor)
        return _shape(service, session, row, scope)


@router.post("/v1/rollouts/{rollout_id}/pause", dependencies=[allow("rollouts.write")])
def pause_rollout(
    service: Service, db: Db, scope: Scoped, actor: Actor, rollout_id: str, body: Reason = NO_REASON
) -> Rollout:
    """Offer nothing until it is resumed; devices under way go on."""
    with db.write() as session:
        row = service.held(session, rollout_id, scope)
        service.pause(session, row, body.reason, actor)
        return _shape(service, session, row, scope)


@router.post("/v1/rollouts/{rollout_id}/resume", dependencies=[allow("rollouts.write")])
def resume_rollout(
    service: Service, db: Db, scope: Scoped, actor: Actor, rollout_id: str, body: Reason = NO_REASON
) -> Rollout:
    """Go on; failures seen until now are acknowledged and only further ones count."""
    with db.write() as session:
        row = service.held(session, rollout_id, scope)
        service.resume(session, row, body.reason, actor)
        return _shape(service, session, row, scope)


@router.post("/v1/rollouts/{rollout_id}/stop", dependencies=[allow("rollouts.write")])
def stop_rollout(
    service: Service, db: Db, scope: Scoped, actor: Actor, rollout_id: str, body: Reason = NO_REASON
) -> Rollout:
    """End it: what was not swapped is withdrawn, what serves goes on serving."""
    with db.write() as session:
        row = service.held(session, rollout_id, scope)
        service.stop(session, row, body.reason, actor)
        return _shape(service, session, row, scope)


@router.post("/v1/rollouts/{rollout_id}/rollback", dependencies=[allow("rollouts.write")])
def roll_back_rollout(
    service: Service, db: Db, scope: Scoped, actor: Actor, rollout_id: str, body: Reason = NO_REASON
) -> Rollout:
    """Take every device that swapped back to its own previous version."""
    with db.write() as session:
        row = service.held(session, rollout_id, scope)
        service.roll_back(session, row, body.reason, actor)
        return _shape(service, session, row, scope)


@router.get("/v1/rollouts/{rollout_id}/device-deployments", dependencies=[allow("rollouts.read")])
def list_rollout_deployments(
    service: Service, db: Db, scope: Scoped, rollout_id: str, query: Paging
) -> PageOf[DeviceDeployment]:
    """List the device deployments of a rollout's waves, one a device."""
    with db.read() as session:
        service.get(session, rollout_id, scope)
        return _deployments(service, session, query, rollout_id, scope)


@router.get("/v1/device-deployments", dependencies=[allow("rollouts.read")])
def list_deployments(
    service: Service, db: Db, scope: Scoped, query: Paging
) -> PageOf[DeviceDeployment]:
    """List device deployments, those of rollbacks and restores too; filter on any text field."""
    with db.read() as session:
        return _deployments(service, session, query, "", scope)


@router.get("/v1/device-deployments/{deployment_id}", dependencies=[allow("rollouts.read")])
def get_deployment(service: Service, db: Db, scope: Scoped, deployment_id: str) -> DeviceDeployment:
    """Answer one device deployment."""
    with db.read() as session:
        row = service.deployment(session, deployment_id, scope)
        names = service.wave_names(session, [row])
        wave = names.get((row.rollout, row.wave), "")
        return DeviceDeployment.of(row, wave, service.clock())


def _shape(service: Rollouts, session: Session, row: RolloutRow, scope: Scope) -> Rollout:
    devices = repository.wave_devices(session, row.id, scope)
    silent = {
        wave: [device for device in found if device in set(devices.get(wave, ()))]
        for wave, found in service.unreachable(session, row).items()
    }
    return Rollout.of(
        row,
        repository.waves(session, row.id),
        devices,
        repository.counts(session, row.id, scope),
        silent,
    )


def _plan(wish: NewRollout, plan: Plan) -> RolloutPlan:
    waves = [
        PlannedWave(
            name=wave.name,
            index=index,
            devices=list(members),
            bytes=sum(plan.bytes_each[device] for device in members),
            gate=gate,
        )
        for index, (wave, gate, members) in enumerate(
            zip(wish.waves, wish.gates(), plan.members, strict=True)
        )
    ]
    return RolloutPlan(
        model=plan.release.model,
        version=plan.release.version,
        manifest=plan.release.manifest,
        devices=sum(len(wave.devices) for wave in waves),
        bytes=sum(wave.bytes for wave in waves),
        waves=waves,
        conflicts=[
            PlanConflict(device=c.device, kind=c.kind, message=c.message) for c in plan.conflicts
        ],
        supersedes=list(plan.supersedes),
    )


def _deployments(
    service: Rollouts, session: Session, query: Paging, rollout: str, scope: Scope
) -> PageOf[DeviceDeployment]:
    rows, token = service.page_of_deployments(session, query, rollout, scope)
    names = service.wave_names(session, rows)
    now = service.clock()
    items = [DeviceDeployment.of(r, names.get((r.rollout, r.wave), ""), now) for r in rows]
    return PageOf(items=items, next_page_token=token)
