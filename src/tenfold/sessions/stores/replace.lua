-- Compare and set, for one session.
-- KEYS[1] the session; ARGV[1] the expected version, 8 bytes; ARGV[2] the value to write; ARGV[3] its lifetime in
-- milliseconds. Returns 1 if ARGV[2] is stored now, nil if there is no session or a tombstone, else the value.
-- A value: one byte of kind (1: payload), 4 of the handle's checksum, 8 of version, 8 of the write's random id.
local value = redis.call('GET', KEYS[1])
if not value or value:byte(1) ~= 1 then
  return nil
end
if value:sub(6, 13) == ARGV[1] then
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
  return 1
end
if value:sub(1, 21) == ARGV[2]:sub(1, 21) then
  return 1 -- this very write, repeated because its reply was lost
end
return value
