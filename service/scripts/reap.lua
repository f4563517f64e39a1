-- Give back the batches whose lease has ended, and end the jobs whose deadline has passed before they began.
-- Returns what became of the jobs, as `fail` does; "expired" is the word for the latter.
-- ARGV: error, most attempts, retention [ms], error of those that expire
local t, told = now(), {}
for _, batch in ipairs(redis.call('ZRANGE', P .. 'leases', '-inf', t, 'BYSCORE', 'LIMIT', 0, 100)) do
  for _, word in ipairs(give_back(batch, '', ARGV[1], true, t, tonumber(ARGV[2]), ARGV[3])) do
    told[#told + 1] = word
  end
end
for _, id in ipairs(redis.call('ZRANGE', P .. 'deadlines', '-inf', t, 'BYSCORE', 'LIMIT', 0, 100)) do
  local job = redis.call('HMGET', P .. 'job:' .. id, 'status', 'lane')
  if job[1] == 'queued' then
    finish(id, 'expired', ARGV[4], t, ARGV[3])
    told[#told + 1] = id; told[#told + 1] = model_of(job[2]); told[#told + 1] = 'expired'
  else
    redis.call('ZREM', P .. 'deadlines', id)
  end
end
return told
