-- Give back the batches whose lease has ended. Returns what became of their jobs, as `fail` does.
-- ARGV: error, most attempts, retention [ms]
local t, told = now(), {}
for _, batch in ipairs(redis.call('ZRANGE', P .. 'leases', '-inf', t, 'BYSCORE', 'LIMIT', 0, 100)) do
  for _, word in ipairs(give_back(batch, '', ARGV[1], true, t, tonumber(ARGV[2]), ARGV[3])) do
    told[#told + 1] = word
  end
end
return told
