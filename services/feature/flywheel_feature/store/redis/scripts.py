"""Lua that runs inside Redis: one key each, so that it works on a cluster; atomic, idempotent."""

from __future__ import annotations

from flywheel_feature.windows.hyperloglog import OBSERVATIONS

WRITE_ROW = """
-- KEYS[1] row; ARGV: packed value, lifetime in ms (0: none). 1 when written, 0 when a newer or the same row is there.
-- Of different rows with equal times the one written last stays, as offline the one read last does.
local old = redis.call('GETRANGE', KEYS[1], 0, 16)
if #old == 17 then
  local event, created = struct.unpack('<i8i8', old, 2)
  local new_event, new_created = struct.unpack('<i8i8', ARGV[1], 2)
  if new_event < event or (new_event == event and new_created < created) then return 0 end
  if new_event == event and new_created == created and redis.call('GET', KEYS[1]) == ARGV[1] then return 0 end
end
if ARGV[2] == '0' then redis.call('SET', KEYS[1], ARGV[1]) else redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) end
return 1
"""

_MERGE_TILES = """
-- Merges a delta into the state of one entity (layout: aggregation.py), unless the state has seen its events.
-- KEYS[1] state; ARGV: operations, entries kept per list (a,b,…), partition, first offset, next offset, lifetime in ms,
-- tiles kept, newest event time, delta, its texts, a letter per list and sketch (l; t: list of texts; s), generation. Returns the
-- partition's next offset: at least the one given when there is nothing left to do, else where the events not yet seen begin
-- (nothing was changed then). A state of an older generation counts as absent; -1 when the state is of a newer one. Among the
-- offsets partition -1 stands for the generation.
local ops = ARGV[1]
local part, first, nxt = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local keep, newest, delta, generation = tonumber(ARGV[7]), tonumber(ARGV[8]), ARGV[9], tonumber(ARGV[12])
local unpack_, pack_, sub, min, max = struct.unpack, struct.pack, string.sub, math.min, math.max
local kinds, texts = ARGV[11], ARGV[10]
local lists, k = #kinds, #ops
local caps, operation = {}, {}
if lists > 0 then
  for cap in string.gmatch(ARGV[2], '%d+') do caps[#caps + 1] = tonumber(cap) end
end
for j = 1, k do operation[j] = sub(ops, j, j) end
local stride = (k + 1) * 8
local record = '<' .. string.rep('d', k + 1)

local old = redis.call('GET', KEYS[1])
local tiles, counts, tile_at, list_at, text_at, offsets, found = 0, {}, 1, 1, 1, {}, false
if old then
  local pairs_of = unpack_('<d', old, 25)
  local born = 0
  for at = #old - pairs_of * 16 + 1, #old, 16 do
    local id, value = unpack_('<dd', old, at)
    if id == -1 then born = value end
  end
  if born > generation then return -1 end
  if born < generation then old = false end
end
if old then
  local header = {unpack_('<' .. string.rep('d', 4 + lists), old)}
  newest = max(newest, header[2])
  tiles = header[3]
  tile_at = (4 + lists) * 8 + 1
  list_at = tile_at + tiles * stride
  local at = list_at
  for l = 1, lists do
    counts[l] = header[4 + l]
    at = at + counts[l] * (sub(kinds, l, l) == 's' and 8 or 32)
  end
  text_at = at
  at = #old - header[4] * 16 + 1
  for p = 1, header[4] do
    local id, offset = unpack_('<dd', old, at)
    at = at + 16
    if id == part then
      if nxt <= offset or first < offset then return offset end
      offset = nxt
      found = true
    end
    offsets[#offsets + 1] = pack_('<dd', id, offset)
  end
else
  old = ''
  for l = 1, lists do counts[l] = 0 end
end
if not found then offsets[#offsets + 1] = pack_('<dd', part, nxt) end
if old == '' then offsets[#offsets + 1] = pack_('<dd', -1, generation) end

local added = {unpack_('<' .. string.rep('d', 1 + lists), delta)}
local more = added[1]
local more_at = (1 + lists) * 8 + 1

local function index_of(s, at, i) return (unpack_('<d', s, at + (i - 1) * stride)) end
local latest = index_of(delta, more_at, more)
if tiles > 0 then latest = max(latest, index_of(old, tile_at, tiles)) end
local oldest = latest - keep + 1

local function merged(a, b)
  local x, y = {unpack_(record, a)}, {unpack_(record, b)}
  for j = k, 1, -1 do
    local op, c = operation[j], j + 1
    if op == '+' then x[c] = x[c] + y[c]
    elseif op == '<' then x[c] = min(x[c], y[c])
    elseif op == '>' then x[c] = max(x[c], y[c])
    elseif op == 'v' then
      local n, m = x[c - 2], y[c - 2]
      if n > 0 and m > 0 then
        local d = y[c - 1] / m - x[c - 1] / n
        x[c] = x[c] + y[c] + d * d * n * m / (n + m)
      else
        x[c] = x[c] + y[c]
      end
    elseif op == 'f' then
      local less = y[c] < x[c]
      if y[c] == x[c] then
        less = y[c + 1] < x[c + 1] or (y[c + 1] == x[c + 1] and y[c + 2] < x[c + 2])
      end
      if less then for z = c, c + 3 do x[z] = y[z] end end
    end
  end
  x[k + 2] = nil
  return pack_(record, unpack(x))
end

-- From the newest tile back; pieces are collected in reverse.
local pieces, total, rest = {}, 0, tiles
local function slice(from, to)
  pieces[#pieces + 1] = sub(old, tile_at + (from - 1) * stride, tile_at + to * stride - 1)
  total = total + to - from + 1
end
for i = more, 1, -1 do
  local at = more_at + (i - 1) * stride
  local index = unpack_('<d', delta, at)
  if index < oldest then break end
  local j = rest
  local here = j >= 1 and index_of(old, tile_at, j)
  if here and here > index then
    -- Late: the last tile that is no newer, by halves.
    local low = 0
    while low < j do
      local middle = math.ceil((low + j) / 2)
      if index_of(old, tile_at, middle) <= index then low = middle else j = middle - 1 end
    end
    here = j >= 1 and index_of(old, tile_at, j)
  end
  if j < rest then slice(j + 1, rest) end
  local piece = sub(delta, at, at + stride - 1)
  if j >= 1 and here == index then
    piece = merged(sub(old, tile_at + (j - 1) * stride, tile_at + j * stride - 1), piece)
    j = j - 1
  end
  pieces[#pieces + 1] = piece
  total = total + 1
  rest = j
end
local from = 1
while from <= rest and index_of(old, tile_at, from) < oldest do from = from + 1 end
if from <= rest then slice(from, rest) end

-- The header, when it is known, then everything else.
local out = {''}
for i = #pieces, 1, -1 do out[#out + 1] = pieces[i] end

-- Lists: entries are 32 bytes, newest last; the texts of theirs follow the offsets, in the same order.
local function before(a, b)
  if a[1] ~= b[1] then return a[1] < b[1] end
  if a[2] ~= b[2] then return a[2] < b[2] end
  return a[3] < b[3]
end
local function entries(t, s, at, n, from, from_at)
  for i = 0, n - 1 do
    local time, known, rank, size = unpack_('<dddd', s, at + i * 32)
    local text = ''
    if from then
      text = sub(from, from_at, from_at + size - 1)
      from_at = from_at + size
    end
    t[#t + 1] = {time, known, rank, sub(s, at + i * 32, at + i * 32 + 31), text}
  end
  return from_at
end
local tail, new_text_at = {}, 1
local function merge_list(l, n, at, m, more_at, cap)
  local with_texts = sub(kinds, l, l) == 't'
  if m == 0 and not with_texts then
    out[#out + 1] = sub(old, at, at + n * 32 - 1)
    return n
  end
  local a = {}
  text_at = entries(a, old, at, n, with_texts and old, text_at) or text_at
  new_text_at = entries(a, delta, more_at, m, with_texts and texts, new_text_at) or new_text_at
  if n > 0 and m > 0 then table.sort(a, before) end
  local start = max(1, #a - cap + 1)
  for i = start, #a do
    out[#out + 1] = a[i][4]
    if with_texts then tail[#tail + 1] = a[i][5] end
  end
  return #a - start + 1
end

-- Sketches: ascending numbers, tile and register and rank in one; of a tile's register the highest rank stays.
local function number(s, at, i) return (unpack_('<d', s, at + (i - 1) * 8)) end
local function place(s, at, n, bound)
  local low, high = 1, n + 1
  while low < high do
    local middle = math.floor((low + high) / 2)
    if number(s, at, middle) < bound then low = middle + 1 else high = middle end
  end
  return low
end
local function merge_sketch(n, at, m, more_at)
  local i, j = place(old, at, n, oldest * OBSERVATIONS), place(delta, more_at, m, oldest * OBSERVATIONS)
  local kept = 0
  local function copy(from, to)
    out[#out + 1] = sub(old, at + (from - 1) * 8, at + to * 8 - 1)
    kept = kept + to - from + 1
  end
  if j <= m then
    local reached = math.max(i, place(old, at, n, math.floor(number(delta, more_at, j) / 64) * 64))
    copy(i, reached - 1)
    i = reached
  end
  while j <= m do
    local y, x = number(delta, more_at, j), math.huge
    if i <= n then x = number(old, at, i) end
    if math.floor(x / 64) == math.floor(y / 64) then
      x = math.max(x, y)
      i, j = i + 1, j + 1
    elseif x < y then i = i + 1
    else x = y; j = j + 1 end
    out[#out + 1] = pack_('<d', x)
    kept = kept + 1
  end
  copy(i, n)
  return kept
end

local delta_list_at = more_at + more * stride
for l = 1, lists do
  local n, m, width = counts[l], added[1 + l], 32
  if sub(kinds, l, l) == 's' then
    width = 8
    counts[l] = merge_sketch(n, list_at, m, delta_list_at)
  else
    counts[l] = merge_list(l, n, list_at, m, delta_list_at, caps[l])
  end
  list_at = list_at + n * width
  delta_list_at = delta_list_at + m * width
end

local header = {2, newest, total, #offsets}
for l = 1, lists do header[4 + l] = counts[l] end
out[1] = pack_('<' .. string.rep('d', #header), unpack(header))
local last = table.concat(tail)
out[#out + 1] = last .. string.rep('\\0', -#last % 8)
for p = 1, #offsets do out[#out + 1] = offsets[p] end
local state = table.concat(out)
if ARGV[6] == '0' then redis.call('SET', KEYS[1], state) else redis.call('SET', KEYS[1], state, 'PX', ARGV[6]) end
return nxt
"""

MERGE_TILES = _MERGE_TILES.replace("OBSERVATIONS", str(OBSERVATIONS))

ADVANCE_POSITION = """
-- KEYS[1] hash of applied positions; ARGV: field, expected value ('' when there must be none), new value, generation.
-- 1 when stored; 0 when another value is there, or another generation: Redis lost data, or another member took over.
if redis.call('HGET', KEYS[1], 'generation') ~= ARGV[4] then return 0 end
local old = redis.call('HGET', KEYS[1], ARGV[1]) or ''
if old ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return 1
"""

TAKE_POSITIONS = """
-- KEYS[1] hash of applied positions; ARGV: generation. The hash as it is in this generation: positions of an older one are
-- forgotten. Of a newer one nothing is answered.
local born = tonumber(redis.call('HGET', KEYS[1], 'generation') or '0')
if born > tonumber(ARGV[1]) then return {} end
if born < tonumber(ARGV[1]) then
  redis.call('DEL', KEYS[1])
  redis.call('HSET', KEYS[1], 'generation', ARGV[1])
end
return redis.call('HGETALL', KEYS[1])
"""

MARK_GENERATION = """
-- KEYS[1] marker; ARGV: generation. Never back to an older one.
if tonumber(redis.call('GET', KEYS[1]) or '0') < tonumber(ARGV[1]) then redis.call('SET', KEYS[1], ARGV[1]) end
return 1
"""
