"""Calibrations of critic versions, and how well they do."""

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import defer

from gadfly.calibration import Calibration, CalibrationReport, ClassCounts
from gadfly.records import CriticCalibration, now
from gadfly.store.mapping import record_of
from gadfly.store.tables import CriticCalibrationRow


async def insert_calibration(
    session: AsyncSession, version: int, calibration: Calibration, report: CalibrationReport
) -> None:
    """Store the calibration of a version. A version has one: a repeated call changes nothing."""
    await session.execute(
        insert(CriticCalibrationRow)
        .values(
            version=version,
            created_at=now(),
            slope=calibration.slope,
            intercept=calibration.intercept,
            traffic_right=calibration.traffic.right,
            traffic_wrong=calibration.traffic.wrong,
            report=report.to_json(),
        )
        .on_conflict_do_nothing()
    )


async def list_calibrations(session: AsyncSession) -> dict[int, Calibration]:
    """The calibration of every version that has one."""
    rows = await session.scalars(select(CriticCalibrationRow).options(defer(CriticCalibrationRow.report)))
    return {row.version: _calibration(row) for row in rows}


async def read_calibration(session: AsyncSession, version: int) -> CriticCalibration | None:
    """A version's calibration with its report; None where it has none."""
    row = await session.get(CriticCalibrationRow, version)
    if row is None:
        return None
    return record_of(
        CriticCalibration, row, calibration=_calibration(row), report=CalibrationReport.from_json(row.report)
    )


def _calibration(row: CriticCalibrationRow) -> Calibration:
    return record_of(Calibration, row, traffic=ClassCounts(right=row.traffic_right, wrong=row.traffic_wrong))
