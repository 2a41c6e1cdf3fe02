-- Moves one applied position of a source forward.
--
-- KEYS[1]  hash of applied positions
-- ARGV[1]  field: view@version/partition
-- ARGV[2]  expected value; '' when the field must be absent
-- ARGV[3]  new value
-- ARGV[4]  generation
--
-- Returns 1 when the value was stored. Returns 0 when the hash holds another value or belongs to another
-- generation: Redis lost data, or another member took over.
if redis.call('HGET', KEYS[1], 'generation') ~= ARGV[4] then return 0 end
local stored = redis.call('HGET', KEYS[1], ARGV[1]) or ''
if stored ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return 1
