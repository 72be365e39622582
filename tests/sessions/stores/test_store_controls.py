"""The contract's own controls: each of its checks fails on a store that is wrong in one thing."""

from __future__ import annotations

import asyncio

import pytest

from tenfold.sessions.stores import contract
from tenfold.sessions.stores.contract import CHECKS, Check
from tests.sessions.support import broken_stores as stores
from tests.sessions.support.broken_stores import Clock, Right

# Which check has to find which fault; others may find it too.
FOUND: list[tuple[type[Right], Check]] = [
    (stores.InventsSessions, contract.unknown_handles_are_nothing),
    (stores.SkipsTheMissing, contract.unknown_handles_are_nothing),
    (stores.ForgetsAtOnce, contract.what_was_created_is_read),
    (stores.CountsFromZero, contract.what_was_created_is_read),
    (stores.KeepsText, contract.payloads_are_bytes),
    (stores.StripsWrites, contract.payloads_are_bytes),
    (stores.Overwrites, contract.a_second_create_is_refused),
    (stores.LooksThenCreates, contract.one_of_many_creates_wins),
    (stores.StopsCounting, contract.a_write_counts_the_version),
    (stores.Upserts, contract.a_late_write_is_told_what_is_kept),
    (stores.RefusesSilently, contract.a_late_write_is_told_what_is_kept),
    (stores.Adopts, contract.a_write_never_creates),
    (stores.Upserts, contract.no_write_is_lost),
    (stores.ComparesThenSets, contract.no_write_is_lost),
    (stores.SortsMany, contract.many_are_read_in_order),
    (stores.IgnoresCase, contract.handles_do_not_mix),
    (stores.ForgetsLifetimes, contract.a_payload_expires),
    (stores.NeverProlongs, contract.a_write_sets_the_lifetime),
    (stores.NoTombstone, contract.what_was_revoked_stays_gone),
    (stores.TombstoneIgnoredByCreate, contract.what_was_revoked_stays_gone),
    (stores.NoTombstone, contract.a_handle_can_be_revoked_before_it_is_created),
    (stores.TombstoneOnlyInPlace, contract.a_handle_can_be_revoked_before_it_is_created),
    (stores.RevocationLosesRaces, contract.revocation_wins_every_race),
    (stores.TombstoneGoesWithTheSession, contract.a_tombstone_lasts_as_long_as_it_was_told),
    (stores.TombstoneStays, contract.a_tombstone_lasts_as_long_as_it_was_told),
    (stores.NamesMembersTwice, contract.a_group_names_its_members),
    (stores.OneGroupForAll, contract.a_group_names_its_members),
    (stores.SortsMembersByName, contract.members_come_oldest_first),
    (stores.MembersForEver, contract.a_membership_expires),
    (stores.LastEnlistingDecides, contract.a_membership_expires),
    (stores.FirstEnlistingDecides, contract.a_membership_expires),
    (stores.GroupsWithoutEnd, contract.a_group_is_bounded),
    (stores.FullGroupsTakeNobody, contract.a_group_is_bounded),
    (stores.FullGroupsForget, contract.a_group_is_bounded),
    (stores.NobodyLeaves, contract.a_group_is_bounded),
    (stores.GroupsAmongHandles, contract.groups_and_handles_do_not_mix),
]


def run(check: Check, kind: type[Right]) -> None:
    clock = Clock()
    asyncio.run(check(kind(clock), clock.wait))


@pytest.mark.parametrize(
    ("kind", "check"), FOUND, ids=[f"{check.__name__} finds {kind.__name__}" for kind, check in FOUND]
)
def test_a_fault_is_found(kind: type[Right], check: Check) -> None:
    with pytest.raises(AssertionError, match=r"\w+ \w+ \w+"):
        run(check, kind)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_store_that_is_right_passes(check: Check) -> None:
    run(check, Right)


def test_every_check_has_a_fault_that_it_finds() -> None:
    assert {check for _, check in FOUND} == set(CHECKS)
    public = {value for name, value in vars(contract).items() if asyncio.iscoroutinefunction(value)}
    assert public == set(CHECKS)
