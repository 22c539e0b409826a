"""Certificates as if they had been made at another moment."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import pytest

from fedvision.deployment import certificates


def make_at(folder: Path, monkeypatch: pytest.MonkeyPatch, moment: datetime) -> None:
    """Make certificates of one day as if it were another moment; the authority's is good today too."""

    class Then(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:
            return moment

    authority = certificates._new_authority(3650)
    certificates._write(
        folder,
        {
            Path("ca.key"): (certificates._pem(authority.key), 0o600),
            Path("ca.crt"): certificates._public(authority.certificate),
        },
    )
    with monkeypatch.context() as patch:
        patch.setattr(certificates, "datetime", Then)
        certificates.make(folder, hosts=["localhost"], clients=["north"], days=1)
    begins, ends = certificates.validity(folder / "server/server.crt")
    assert ends - begins == timedelta(days=1, hours=1)
