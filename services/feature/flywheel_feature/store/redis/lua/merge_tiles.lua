-- Merges a delta of one partition into the tile state of one entity, unless the state already has its events.
--
-- KEYS[1]   state; flywheel_feature/windows/tile_layout.py documents its layout
-- ARGV[1]   operations, one letter per component: + sum, < minimum, > maximum, v squared deviations (its sum
--           and its count are the two components before it), f first (its known time, rank and value are the
--           three components after it, each with the letter .)
-- ARGV[2]   entries kept per list: a,b,…
-- ARGV[3]   partition of the delta
-- ARGV[4]   first offset of the delta
-- ARGV[5]   next offset of the delta
-- ARGV[6]   lifetime of the state in ms; 0: unlimited
-- ARGV[7]   tiles kept
-- ARGV[8]   newest event time of the delta
-- ARGV[9]   delta: number of tiles, entries per list and sketch, then the three sections as in a state
-- ARGV[10]  texts of the delta's list entries
-- ARGV[11]  one letter per list and sketch: l list, t list of texts, s sketch
-- ARGV[12]  generation
-- ARGV[13]  first event time of the delta
-- OBSERVATIONS is a constant that scripts.py defines before this script.
--
-- Returns the partition's next offset:
--   at least ARGV[5]  the state contains the whole delta
--   smaller           the offset where the unseen events begin; nothing was changed
--   -1                the state belongs to a newer generation; nothing was changed
-- A state of an older generation counts as absent. Among the offsets of a state, partition -1 holds its
-- generation, and -2 its first event time, unless an earlier version began the state.
local unpack_, pack_, sub, min, max = struct.unpack, struct.pack, string.sub, math.min, math.max
local DOUBLE, OFFSET, ENTRY = 8, 16, 32 -- sizes in bytes
local RANKS = 64 -- numbers per register of a sketch

local operations = ARGV[1]
local partition, first_offset, next_offset = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local lifetime, kept_tiles, newest = ARGV[6], tonumber(ARGV[7]), tonumber(ARGV[8])
local delta, delta_texts, kinds, generation = ARGV[9], ARGV[10], ARGV[11], tonumber(ARGV[12])
local first_event = tonumber(ARGV[13])
local sections, components = #kinds, #operations
local operation, capacity, kind = {}, {}, {}
for j = 1, components do operation[j] = sub(operations, j, j) end
for l = 1, sections do kind[l] = sub(kinds, l, l) end
if sections > 0 then
  for entries in string.gmatch(ARGV[2], '%d+') do capacity[#capacity + 1] = tonumber(entries) end
end
local tile_format = '<' .. string.rep('d', components + 1)
local tile_size = (components + 1) * DOUBLE

-- 1. The stored state: where its sections begin, and whether it has seen the delta. Positions count from 1.

local state = redis.call('GET', KEYS[1])
local tiles, counts, tiles_at, section_at, texts_at = 0, {}, 1, 1, 1
local offsets, partition_found = {}, false
if state then
  local offset_count = unpack_('<d', state, 3 * DOUBLE + 1)
  local state_generation = 0
  for at = #state - offset_count * OFFSET + 1, #state, OFFSET do
    local id, value = unpack_('<dd', state, at)
    if id == -1 then state_generation = value end
  end
  if state_generation > generation then return -1 end
  if state_generation < generation then state = false end
end
if state then
  local header = {unpack_('<' .. string.rep('d', 4 + sections), state)}
  newest = max(newest, header[2])
  tiles = header[3]
  tiles_at = (4 + sections) * DOUBLE + 1
  section_at = tiles_at + tiles * tile_size
  local at = section_at
  for l = 1, sections do
    counts[l] = header[4 + l]
    at = at + counts[l] * (kind[l] == 's' and DOUBLE or ENTRY)
  end
  texts_at = at
  at = #state - header[4] * OFFSET + 1
  for p = 1, header[4] do
    local id, offset = unpack_('<dd', state, at)
    at = at + OFFSET
    if id == partition then
      if next_offset <= offset or first_offset < offset then return offset end
      offset = next_offset
      partition_found = true
    elseif id == -2 then
      offset = min(offset, first_event)
    end
    offsets[#offsets + 1] = pack_('<dd', id, offset)
  end
else
  state = ''
  for l = 1, sections do counts[l] = 0 end
end
if not partition_found then offsets[#offsets + 1] = pack_('<dd', partition, next_offset) end
if state == '' then
  offsets[#offsets + 1] = pack_('<dd', -1, generation)
  offsets[#offsets + 1] = pack_('<dd', -2, first_event)
end

local delta_header = {unpack_('<' .. string.rep('d', 1 + sections), delta)}
local delta_tiles = delta_header[1]
local delta_tiles_at = (1 + sections) * DOUBLE + 1

-- 2. Tiles, ascending by index. Tiles older than the newest `kept_tiles` are dropped, but not because of one
-- tile that is as far ahead of all others.

local function tile_index(s, at, i) return (unpack_('<d', s, at + (i - 1) * tile_size)) end
local latest, before = -math.huge, -math.huge
local function see_newest_two(s, at, n)
  for i = max(1, n - 1), n do
    local index = tile_index(s, at, i)
    if index > latest then latest, before = index, latest
    elseif index < latest then before = max(before, index) end
  end
end
see_newest_two(delta, delta_tiles_at, delta_tiles)
see_newest_two(state, tiles_at, tiles)
if before > -math.huge and latest - before >= kept_tiles then latest = before end
local oldest = latest - kept_tiles + 1

local function merged_tile(a, b)
  local x, y = {unpack_(tile_format, a)}, {unpack_(tile_format, b)}
  -- Last component first: squared deviations need the sum and the count before the merge.
  for j = components, 1, -1 do
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
      local earlier = y[c] < x[c]
      if y[c] == x[c] then
        earlier = y[c + 1] < x[c + 1] or (y[c + 1] == x[c + 1] and y[c + 2] < x[c + 2])
      end
      if earlier then for z = c, c + 3 do x[z] = y[z] end end
    end
  end
  x[components + 2] = nil -- struct.unpack also returns the position after the last value
  return pack_(tile_format, unpack(x))
end

-- From the newest tile back, as most deltas change the newest tiles only; `pieces` is in reverse order.
local pieces, total, remaining = {}, 0, tiles
local function keep_tiles(from, to)
  pieces[#pieces + 1] = sub(state, tiles_at + (from - 1) * tile_size, tiles_at + to * tile_size - 1)
  total = total + to - from + 1
end
for i = delta_tiles, 1, -1 do
  local at = delta_tiles_at + (i - 1) * tile_size
  local index = unpack_('<d', delta, at)
  if index < oldest then break end
  local j = remaining
  local stored = j >= 1 and tile_index(state, tiles_at, j)
  if stored and stored > index then
    -- A late tile: binary search for the last stored tile that is not newer.
    local low = 0
    while low < j do
      local middle = math.ceil((low + j) / 2)
      if tile_index(state, tiles_at, middle) <= index then low = middle else j = middle - 1 end
    end
    stored = j >= 1 and tile_index(state, tiles_at, j)
  end
  if j < remaining then keep_tiles(j + 1, remaining) end
  local piece = sub(delta, at, at + tile_size - 1)
  if j >= 1 and stored == index then
    piece = merged_tile(sub(state, tiles_at + (j - 1) * tile_size, tiles_at + j * tile_size - 1), piece)
    j = j - 1
  end
  pieces[#pieces + 1] = piece
  total = total + 1
  remaining = j
end
local from = 1
while from <= remaining and tile_index(state, tiles_at, from) < oldest do from = from + 1 end
if from <= remaining then keep_tiles(from, remaining) end

local out = {''} -- the header is filled in last
for i = #pieces, 1, -1 do out[#out + 1] = pieces[i] end

-- 3. Lists: entries of 32 bytes, newest last. The texts of all lists follow the sketches, in entry order.

local function is_older(a, b)
  if a[1] ~= b[1] then return a[1] < b[1] end
  if a[2] ~= b[2] then return a[2] < b[2] end
  return a[3] < b[3]
end
-- Appends n entries of s to `list`; returns the position after their texts.
local function read_entries(list, s, at, n, texts, text_at)
  for i = 0, n - 1 do
    local time, known, rank, size = unpack_('<dddd', s, at + i * ENTRY)
    local text = ''
    if texts then
      text = sub(texts, text_at, text_at + size - 1)
      text_at = text_at + size
    end
    list[#list + 1] = {time, known, rank, sub(s, at + i * ENTRY, at + i * ENTRY + ENTRY - 1), text}
  end
  return text_at
end
local kept_texts, delta_texts_at = {}, 1
local function merge_list(l, n, at, m, delta_at)
  local has_texts = kind[l] == 't'
  if m == 0 and not has_texts then
    out[#out + 1] = sub(state, at, at + n * ENTRY - 1)
    return n
  end
  local list = {}
  texts_at = read_entries(list, state, at, n, has_texts and state, texts_at)
  delta_texts_at = read_entries(list, delta, delta_at, m, has_texts and delta_texts, delta_texts_at)
  if n > 0 and m > 0 then table.sort(list, is_older) end
  local start = max(1, #list - capacity[l] + 1)
  for i = start, #list do
    out[#out + 1] = list[i][4]
    if has_texts then kept_texts[#kept_texts + 1] = list[i][5] end
  end
  return #list - start + 1
end

-- 4. Sketches: ascending numbers, tile index × OBSERVATIONS + register × 64 + rank. Per tile and register the
-- highest rank is kept.

local function number(s, at, i) return (unpack_('<d', s, at + (i - 1) * DOUBLE)) end
local function lower_bound(s, at, n, bound)
  local low, high = 1, n + 1
  while low < high do
    local middle = math.floor((low + high) / 2)
    if number(s, at, middle) < bound then low = middle + 1 else high = middle end
  end
  return low
end
local function merge_sketch(n, at, m, delta_at)
  local i = lower_bound(state, at, n, oldest * OBSERVATIONS)
  local j = lower_bound(delta, delta_at, m, oldest * OBSERVATIONS)
  local kept = 0
  local function copy(first, last)
    out[#out + 1] = sub(state, at + (first - 1) * DOUBLE, at + last * DOUBLE - 1)
    kept = kept + last - first + 1
  end
  if j <= m then
    local register = math.floor(number(delta, delta_at, j) / RANKS) * RANKS
    local reached = max(i, lower_bound(state, at, n, register))
    copy(i, reached - 1)
    i = reached
  end
  while j <= m do
    local y, x = number(delta, delta_at, j), math.huge
    if i <= n then x = number(state, at, i) end
    if math.floor(x / RANKS) == math.floor(y / RANKS) then
      x = max(x, y)
      i, j = i + 1, j + 1
    elseif x < y then i = i + 1
    else x = y; j = j + 1 end
    out[#out + 1] = pack_('<d', x)
    kept = kept + 1
  end
  copy(i, n)
  return kept
end

local delta_section_at = delta_tiles_at + delta_tiles * tile_size
for l = 1, sections do
  local n, m, size = counts[l], delta_header[1 + l], ENTRY
  if kind[l] == 's' then
    size = DOUBLE
    counts[l] = merge_sketch(n, section_at, m, delta_section_at)
  else
    counts[l] = merge_list(l, n, section_at, m, delta_section_at)
  end
  section_at = section_at + n * size
  delta_section_at = delta_section_at + m * size
end

-- 5. The new state: header, tiles, lists, sketches, texts filled up to a multiple of 8, offsets.

local header = {2, newest, total, #offsets}
for l = 1, sections do header[4 + l] = counts[l] end
out[1] = pack_('<' .. string.rep('d', #header), unpack(header))
local texts = table.concat(kept_texts)
out[#out + 1] = texts .. string.rep('\0', -#texts % DOUBLE)
for p = 1, #offsets do out[#out + 1] = offsets[p] end
local merged = table.concat(out)
if lifetime == '0' then
  redis.call('SET', KEYS[1], merged)
else
  redis.call('SET', KEYS[1], merged, 'PX', lifetime)
end
return next_offset
