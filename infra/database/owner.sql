-- What lies in this database's public schema gets the database's owner, also where the superuser made it before there
-- was one. What belongs to an extension, a table's column or a table keeps or follows its own.

DO $$
DECLARE
    owner regrole := (SELECT datdba FROM pg_database WHERE datname = current_database());
    statement text;
BEGIN
    FOR statement IN
        SELECT format('ALTER %s %s OWNER TO %s', kind, name, owner)
        FROM (
            SELECT 'pg_class'::regclass AS catalog, oid, relowner AS owned_by, oid::regclass::text AS name,
                CASE relkind WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW' WHEN 'S' THEN 'SEQUENCE'
                    ELSE 'TABLE' END AS kind
            FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v', 'm', 'S')
            UNION ALL
            SELECT 'pg_proc'::regclass, oid, proowner, oid::regprocedure::text, 'ROUTINE'
            FROM pg_proc WHERE pronamespace = 'public'::regnamespace
            UNION ALL
            SELECT 'pg_type'::regclass, oid, typowner, oid::regtype::text, 'TYPE'
            FROM pg_type WHERE typnamespace = 'public'::regnamespace AND typtype IN ('e', 'd')
        ) AS found
        WHERE owned_by <> owner AND NOT EXISTS (
            SELECT FROM pg_depend
            WHERE classid = found.catalog AND objid = found.oid AND deptype IN ('e', 'a', 'i')
        )
    LOOP
        EXECUTE statement;
    END LOOP;
END $$;
