-- What each shard has in its schema "tenfold". Every statement can be repeated. PostgreSQL 14 or newer, UTF-8.

CREATE SCHEMA IF NOT EXISTS tenfold;
GRANT USAGE ON SCHEMA tenfold TO PUBLIC;

-- The shard's own name, and a number that grows whenever its set of buckets changes.
CREATE TABLE IF NOT EXISTS tenfold.shard (
  only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
  name text NOT NULL,
  epoch bigint NOT NULL
);

-- The buckets whose rows are here. Those that are left behind by a move are not owned.
CREATE TABLE IF NOT EXISTS tenfold.buckets (
  bucket smallint PRIMARY KEY CHECK (bucket BETWEEN 0 AND 8191),
  epoch bigint NOT NULL,
  owned boolean NOT NULL DEFAULT true
);
CREATE INDEX IF NOT EXISTS buckets_left_behind ON tenfold.buckets (bucket) WHERE NOT owned;

-- The tables that are sharded, and the columns of their key.
CREATE TABLE IF NOT EXISTS tenfold.tables (name text PRIMARY KEY, key text[] NOT NULL);

GRANT SELECT ON tenfold.shard, tenfold.buckets, tenfold.tables TO PUBLIC;

-- keys.py has the same functions.
CREATE OR REPLACE FUNCTION tenfold.key(value bigint) RETURNS text
  LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
  RETURN 'i' || octet_length(value::text)::text || ':' || value::text;
CREATE OR REPLACE FUNCTION tenfold.key(value uuid) RETURNS text
  LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
  RETURN 'u36:' || value::text;
CREATE OR REPLACE FUNCTION tenfold.key(value text) RETURNS text
  LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
  RETURN 't' || octet_length(value)::text || ':' || value;

-- The cast to bytea reads backslashes, hence the doubling; three hexadecimal digits are 12 bits.
CREATE OR REPLACE FUNCTION tenfold.bucket(key text) RETURNS smallint
  LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
  RETURN ('x' || right(encode(sha256(replace(key, '\', '\\')::bytea), 'hex'), 3))::bit(12)::integer::smallint;

-- The first statement of each transaction that may write. The lock lasts until its end, so that a bucket
-- cannot leave meanwhile; a transaction of an older epoch is refused.
CREATE OR REPLACE FUNCTION tenfold.claim(wanted smallint, wanted_epoch bigint) RETURNS void
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM FROM tenfold.buckets b
    WHERE b.bucket = wanted AND b.epoch = wanted_epoch AND b.owned FOR SHARE;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'bucket % is not here in epoch %', wanted, wanted_epoch USING ERRCODE = 'TF001';
  END IF;
END $$;

-- In the WHERE of a query that goes to all shards: STABLE, so that it looks at the query's own snapshot, once;
-- PARALLEL SAFE, so that the query may still use several workers.
CREATE OR REPLACE FUNCTION tenfold.require_epoch(wanted bigint) RETURNS boolean
  LANGUAGE plpgsql STABLE PARALLEL SAFE AS $$
BEGIN
  PERFORM FROM tenfold.shard WHERE epoch = wanted;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'the buckets of this shard have changed since epoch %', wanted USING ERRCODE = 'TF001';
  END IF;
  RETURN true;
END $$;

-- Before each insert: a row comes only to the shard that has its bucket.
CREATE OR REPLACE FUNCTION tenfold.check_bucket() RETURNS trigger
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM FROM tenfold.buckets b WHERE b.bucket = NEW.bucket AND b.owned FOR SHARE;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'a row of bucket % does not belong to this shard', NEW.bucket USING ERRCODE = 'TF002';
  END IF;
  RETURN NEW;
END $$;

CREATE OR REPLACE FUNCTION tenfold.refuse_row() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION '%', TG_ARGV[0] USING ERRCODE = 'TF002';
END $$;

-- Identifiers of 64 bits: 41 of milliseconds since 2025, 12 of the bucket, one that says whether its tenant has
-- a bucket of its own, 9 that count. The sequence is a clock that never goes back: its value holds the
-- milliseconds above the counter. nextval() is called under a shared lock, setval() under an exclusive one:
-- otherwise nextval() could pass the value that setval() is about to set, and return it again.
CREATE SEQUENCE IF NOT EXISTS tenfold.clock;
CREATE OR REPLACE FUNCTION tenfold.next_id() RETURNS bigint
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  bucket bigint := current_setting('tenfold.bucket')::bigint;
  now_ms bigint := floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint - 1735689600000;
  ticks bigint;
BEGIN
  BEGIN
    PERFORM pg_advisory_lock_shared(1952804454, 1);
    ticks := nextval('tenfold.clock');
    PERFORM pg_advisory_unlock_shared(1952804454, 1);
  EXCEPTION WHEN OTHERS OR query_canceled THEN
    PERFORM pg_advisory_unlock_shared(1952804454, 1);
    RAISE;
  END;
  IF ticks >> 9 < now_ms AND pg_try_advisory_lock(1952804454, 1) THEN  -- does not wait
    BEGIN
      IF (SELECT last_value FROM tenfold.clock) >> 9 < now_ms THEN
        PERFORM setval('tenfold.clock', now_ms << 9);
      END IF;
      ticks := nextval('tenfold.clock');
      PERFORM pg_advisory_unlock(1952804454, 1);
    EXCEPTION WHEN OTHERS OR query_canceled THEN
      PERFORM pg_advisory_unlock(1952804454, 1);
      RAISE;
    END;
  END IF;
  -- Operators on bits have one precedence.
  RETURN ((ticks >> 9) << 22) | ((bucket & 4095) << 10) | ((bucket >> 12) << 9) | (ticks & 511);
END $$;
