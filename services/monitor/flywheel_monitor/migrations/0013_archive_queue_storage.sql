-- Rows of the queue live for seconds: compressing them costs more than writing them.
ALTER TABLE archive_queue ALTER COLUMN payload SET STORAGE EXTERNAL;
