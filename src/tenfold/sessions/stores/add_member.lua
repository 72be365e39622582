-- Adds a handle to a group: a sorted set by the time in milliseconds at which each handle expires.
-- KEYS[1] the group; ARGV[1] the handle; ARGV[2] its lifetime in milliseconds; ARGV[3] the most handles in a
-- group; ARGV[4] and following: handles to remove. Returns nothing, or, adding none, the handles that have to
-- leave first.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
for index = 4, #ARGV do
  redis.call('ZREM', KEYS[1], ARGV[index])
end
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) then
  local surplus = redis.call('ZCARD', KEYS[1]) + 1 - ARGV[3]
  if surplus > 0 then
    return redis.call('ZRANGE', KEYS[1], 0, surplus - 1)
  end
end
redis.call('ZADD', KEYS[1], 'GT', now + ARGV[2], ARGV[1])
local last = redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')
redis.call('PEXPIREAT', KEYS[1], last[2])
return {}
