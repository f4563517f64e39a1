-- The jobs of a caller, the last submitted first, that have a status and are of a data set ("" for any of them).
-- Returns {next cursor or "", job, its record, job, ...}; jobs that are gone leave the list.
-- ARGV: owner, status, data set, most jobs, cursor "submitted [us]:job" or "" for the beginning
local LOOK = 1000  -- jobs that are looked at in one call
local key, most = P .. 'jobs:' .. ARGV[1], tonumber(ARGV[4])
local at, after = string.match(ARGV[5], '^(%d+):(%x+)$')
local told, found, last = {''}, 0, ''
local rows = redis.call('ZRANGE', key, at or '+inf', '-inf', 'BYSCORE', 'REV', 'LIMIT', 0, LOOK, 'WITHSCORES')
for k = 1, #rows, 2 do
  local id, score = rows[k], string.format('%.0f', rows[k + 1])
  if not at or tonumber(score) < tonumber(at) or id < after then
    local job = redis.call('HMGET', P .. 'job:' .. id, 'status', 'request')
    if not job[1] then
      redis.call('ZREM', key, id)
    elseif (ARGV[2] == '' or ARGV[2] == job[1]) and (ARGV[3] == '' or cjson.decode(job[2]).dataset == ARGV[3]) then
      if found == most then
        told[1] = last
        return told
      end
      found = found + 1
      told[#told + 1] = id
      told[#told + 1] = record(id)
    end
    last = score .. ':' .. id
  end
end
if #rows == 2 * LOOK then told[1] = last end
return told
