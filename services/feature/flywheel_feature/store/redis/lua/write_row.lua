-- Writes the row of an entity, unless a newer row or the same row is stored.
--
-- KEYS[1]  row
-- ARGV[1]  packed value: one format byte, event time, created time (int64 each, little-endian), columns
-- ARGV[2]  lifetime in ms; 0: unlimited
--
-- Returns 1 when the row was written, else 0. If two different rows have equal times, the one written last is
-- kept, as the one read last is kept offline.
local stored = redis.call('GETRANGE', KEYS[1], 0, 16)
if #stored == 17 then
  local event, created = struct.unpack('<i8i8', stored, 2)
  local new_event, new_created = struct.unpack('<i8i8', ARGV[1], 2)
  if new_event < event or (new_event == event and new_created < created) then return 0 end
  if new_event == event and new_created == created and redis.call('GET', KEYS[1]) == ARGV[1] then return 0 end
end
if ARGV[2] == '0' then
  redis.call('SET', KEYS[1], ARGV[1])
else
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
end
return 1
