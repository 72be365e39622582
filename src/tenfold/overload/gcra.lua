-- The generic cell rate algorithm, as tenfold/overload/gcra.py decides it: one key, one moment in microseconds.
-- KEYS[1]  the key       ARGV  microseconds per unit, burst, cost
-- Returns: allowed (1 or 0), remaining, microseconds until the cost is allowed (-1: never), until all is free
local interval, burst, cost = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
-- Small differences only: at this size of now a double is a quarter of a microsecond coarse.
local used = math.max(tonumber(redis.call('GET', KEYS[1]) or now) - now, 0)
local after = used + cost * interval
local early = after - burst * interval
local allowed = early <= 1
if allowed then
  used = math.ceil(after)
  if cost > 0 then
    redis.call('SET', KEYS[1], string.format('%.0f', now + used), 'PX', math.max(math.ceil(used / 1000), 1))
  end
end
local wait = 0
if not allowed then
  wait = cost <= burst and math.ceil(early) or -1
end
return { allowed and 1 or 0, math.max(math.floor(burst - used / interval + 0.001), 0), wait, math.ceil(used) }
