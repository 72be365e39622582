"""Negative controls of the contract: each of its checks fails on a store with one fault."""

from __future__ import annotations

import asyncio

import pytest

from tenfold.sessions.stores import contract
from tenfold.sessions.stores.contract import CHECKS, StoreCheck
from tests.sessions.support import broken_stores as stores
from tests.sessions.support.broken_stores import Clock, CorrectStore

# A fault and the check that must detect it; others may detect it too.
DETECTED: list[tuple[type[CorrectStore], StoreCheck]] = [
    (stores.InventsSessions, contract.unknown_handle_reads_as_none),
    (stores.SkipsMissing, contract.unknown_handle_reads_as_none),
    (stores.ExpiresAtOnce, contract.created_payload_is_read_as_version_1),
    (stores.CountsFromZero, contract.created_payload_is_read_as_version_1),
    (stores.StoresText, contract.payloads_are_preserved_byte_for_byte),
    (stores.StripsWrites, contract.payloads_are_preserved_byte_for_byte),
    (stores.CreateOverwrites, contract.second_create_is_refused),
    (stores.ChecksThenCreates, contract.one_of_concurrent_creates_wins),
    (stores.ResetsTheVersion, contract.each_write_increments_the_version),
    (stores.Upserts, contract.conflicting_write_returns_the_stored_payload),
    (stores.HidesConflicts, contract.conflicting_write_returns_the_stored_payload),
    (stores.ReplaceCreates, contract.replace_never_creates),
    (stores.Upserts, contract.no_concurrent_update_is_lost),
    (stores.ComparesThenSets, contract.no_concurrent_update_is_lost),
    (stores.SortsReadMany, contract.read_many_preserves_the_order),
    (stores.IgnoresCase, contract.similar_handles_are_distinct),
    (stores.IgnoresLifetimes, contract.payload_expires),
    (stores.NeverExtends, contract.replace_sets_the_lifetime),
    (stores.NoTombstone, contract.revoked_session_is_never_restored),
    (stores.TombstoneIgnoredByCreate, contract.revoked_session_is_never_restored),
    (stores.NoTombstone, contract.handle_can_be_revoked_before_it_is_created),
    (stores.TombstoneOnlyInPlace, contract.handle_can_be_revoked_before_it_is_created),
    (stores.RevocationLosesRaces, contract.revocation_wins_over_concurrent_writes),
    (stores.TombstoneExpiresWithTheSession, contract.tombstone_lasts_for_its_lifetime),
    (stores.TombstoneNeverExpires, contract.tombstone_lasts_for_its_lifetime),
    (stores.ListsMembersTwice, contract.group_lists_its_members),
    (stores.SharesOneGroup, contract.group_lists_its_members),
    (stores.SortsMembersByName, contract.members_are_listed_oldest_first),
    (stores.MembersNeverExpire, contract.membership_expires),
    (stores.LastAddDecides, contract.membership_expires),
    (stores.FirstAddDecides, contract.membership_expires),
    (stores.UnboundedGroups, contract.group_size_is_bounded),
    (stores.FullGroupsLoseNewMembers, contract.group_size_is_bounded),
    (stores.FullGroupsDropMembers, contract.group_size_is_bounded),
    (stores.IgnoresReplacing, contract.group_size_is_bounded),
    (stores.GroupsAmongHandles, contract.groups_and_handles_have_separate_names),
]


def run(check: StoreCheck, kind: type[CorrectStore]) -> None:
    clock = Clock()
    asyncio.run(check(kind(clock), clock.wait))


@pytest.mark.control(
    "every store fulfils the same contract: no lost update, no restored session, no adopted "
    "handle, no ignored lifetime",
    "34 stores with one fault each",
)
@pytest.mark.control("every key and row has a lifetime", "with stores that ignore lifetimes")
@pytest.mark.parametrize(
    ("kind", "check"), DETECTED, ids=[f"{check.__name__} detects {kind.__name__}" for kind, check in DETECTED]
)
def test_check_detects_a_fault(kind: type[CorrectStore], check: StoreCheck) -> None:
    with pytest.raises(AssertionError, match=r"\w+ \w+ \w+"):
        run(check, kind)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_correct_store_passes(check: StoreCheck) -> None:
    run(check, CorrectStore)


@pytest.mark.control(
    "every store fulfils the same contract: no lost update, no restored session, no adopted "
    "handle, no ignored lifetime"
)
def test_every_check_detects_some_fault() -> None:
    assert {check for _, check in DETECTED} == set(CHECKS)
    public = {value for name, value in vars(contract).items() if asyncio.iscoroutinefunction(value)}
    assert public == set(CHECKS)
