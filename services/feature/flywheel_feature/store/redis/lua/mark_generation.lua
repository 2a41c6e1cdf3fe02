-- Stores the generation in a marker, unless the marker holds a newer one.
--
-- KEYS[1]  marker
-- ARGV[1]  generation
--
-- Returns 1.
local stored = tonumber(redis.call('GET', KEYS[1]) or '0')
if stored < tonumber(ARGV[1]) then redis.call('SET', KEYS[1], ARGV[1]) end
return 1
