"""What `make resolve-gpu` reads from pip; asking pip itself takes minutes and the network."""

from tests.resolve_gpu import resolved


def test_versions_are_read_from_pips_report():
    report = {
        "install": [
            {"metadata": {"name": "Unsloth-Zoo", "version": "2026.10.7"}},
            {"metadata": {"name": "torch", "version": "2.14.1"}},
        ]
    }
    assert resolved(report) == {"unsloth_zoo": "2026.10.7", "torch": "2.14.1"}
