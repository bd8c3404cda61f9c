-- Roles and databases beside the superuser's, for psql. Safe to repeat; passwords come from the environment.
-- The worker, which decodes files of strangers, owns the catalog and can do nothing outside it; so does Prefect's server
-- with its own tables. Both keep an Alembic version table, so that they need a database each.

\set ON_ERROR_STOP on
\getenv worker_password WORKER_POSTGRES_PASSWORD
\getenv prefect_password PREFECT_POSTGRES_PASSWORD

SELECT format('CREATE ROLE %I', name) FROM (VALUES ('medgen_worker'), ('prefect_server')) AS wanted (name)
WHERE name NOT IN (SELECT rolname FROM pg_roles) \gexec
ALTER ROLE medgen_worker LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS
    PASSWORD :'worker_password';
ALTER ROLE prefect_server LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS
    PASSWORD :'prefect_password';

SELECT format('CREATE DATABASE %I', name) FROM (VALUES ('medgen'), ('prefect')) AS wanted (name)
WHERE name NOT IN (SELECT datname FROM pg_database) \gexec
ALTER DATABASE medgen OWNER TO medgen_worker;
ALTER DATABASE prefect OWNER TO prefect_server;
REVOKE ALL ON DATABASE medgen, prefect, postgres, template1 FROM PUBLIC;

\connect medgen
-- Searches by meaning use it where the server has it; only a superuser may make it.
SELECT 'CREATE EXTENSION IF NOT EXISTS vector'
WHERE EXISTS (SELECT FROM pg_available_extensions WHERE name = 'vector') \gexec
\ir owner.sql
\connect prefect
\ir owner.sql
