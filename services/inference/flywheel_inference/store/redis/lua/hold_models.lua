-- Holds models for a gateway, and returns those that another gateway is unloading.
-- KEYS[1]: since when the holds are complete. KEYS[i + 1] and KEYS[i + 1 + n]: holds and unload mark of model i.
-- ARGV: gateway, seconds that a hold lasts.
local now = tonumber(redis.call('TIME')[1])
local gateway, seconds = ARGV[1], tonumber(ARGV[2])
local n = (#KEYS - 1) / 2
redis.call('SET', KEYS[1], now, 'NX')
local unloading = {}
for i = 1, n do
  local holds, mark = KEYS[i + 1], KEYS[i + 1 + n]
  redis.call('ZADD', holds, now + seconds, gateway)
  redis.call('EXPIRE', holds, 2 * seconds)
  local by = redis.call('GET', mark)
  if by and by ~= gateway then unloading[#unloading + 1] = i end
end
return unloading
