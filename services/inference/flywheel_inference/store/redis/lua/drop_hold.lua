-- Drops a gateway's hold. 1: no other gateway holds the model, which is now marked as being unloaded.
-- 0: another gateway holds it. -1: the holds are incomplete, because Redis lost them or began a short time ago.
-- KEYS: since when the holds are complete, holds of the model, unload mark of the model.
-- ARGV: gateway, seconds that a hold lasts, seconds that an unload mark lasts.
local now = tonumber(redis.call('TIME')[1])
local since = tonumber(redis.call('GET', KEYS[1]))
if not since or now - since < tonumber(ARGV[2]) then
  redis.call('SET', KEYS[1], now, 'NX')
  return -1
end
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
if redis.call('ZCARD', KEYS[2]) > 0 then return 0 end
redis.call('SET', KEYS[3], ARGV[1], 'EX', ARGV[3])
return 1
