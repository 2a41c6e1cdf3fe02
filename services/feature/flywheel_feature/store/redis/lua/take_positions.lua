-- Reads the applied positions of a source in a generation; deletes positions of an older generation first.
--
-- KEYS[1]  hash of applied positions
-- ARGV[1]  generation
--
-- Returns the hash as a flat list; an empty list when the hash belongs to a newer generation.
local stored = tonumber(redis.call('HGET', KEYS[1], 'generation') or '0')
if stored > tonumber(ARGV[1]) then return {} end
if stored < tonumber(ARGV[1]) then
  redis.call('DEL', KEYS[1])
  redis.call('HSET', KEYS[1], 'generation', ARGV[1])
end
return redis.call('HGETALL', KEYS[1])
