-- Run once, by the superuser, when docker compose creates the database. The application owns its database and is no
-- superuser; the role that training acts as exists already, so that the application needs no right to create roles.
\set password `cat /password/gadfly`
CREATE ROLE gadfly LOGIN PASSWORD :'password';
CREATE ROLE gadfly_training NOLOGIN;
GRANT gadfly_training TO gadfly;
ALTER DATABASE gadfly OWNER TO gadfly;
