-- Compare and set, for one session.
-- KEYS[1] the session; ARGV[1] the version expected, 8 bytes; ARGV[2] the value to write; ARGV[3] its milliseconds.
-- Answers 1 when ARGV[2] is what is kept now, nil when nothing is or it was revoked, else what is kept.
-- A value: one byte of kind (1: kept), 4 of the handle's checksum, 8 of version, 8 of the write's own number.
local kept = redis.call('GET', KEYS[1])
if not kept or kept:byte(1) ~= 1 then
  return nil
end
if kept:sub(6, 13) == ARGV[1] then
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
  return 1
end
if kept:sub(1, 21) == ARGV[2]:sub(1, 21) then
  return 1 -- this very write, repeated because its answer was lost
end
return kept
