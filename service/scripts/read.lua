-- A job with its place among the jobs that wait for its model (0 = next), as {fields, place}; {} when there is none.
-- ARGV: id
return record(ARGV[1])
